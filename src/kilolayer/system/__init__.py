"""The machine around a run: durable files, folders, ranks, signals, streams, the terminal."""
