"""GGUF files, read and written: one table of names, one rotary order, one table of pre-tokenizers."""
