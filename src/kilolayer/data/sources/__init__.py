"""Where images come from: digits, CIFAR, folders, parquet files."""
