"""The commands, a file each: a dataclass whose fields are its options, and a function that carries it out."""
