"""Picture files: decoding, rendering, inspection."""
