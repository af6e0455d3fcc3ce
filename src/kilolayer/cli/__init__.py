"""The command line: one file a command.

Each command's file holds a dataclass `…Options`, whose fields are the command's options, and a function
`execute`, which takes that dataclass, calls the library, prints, and returns the exit status.
"""
