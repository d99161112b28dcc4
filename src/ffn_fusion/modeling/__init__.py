"""The Hugging Face config and model of a child: two self-contained files that also travel inside the checkpoint."""
