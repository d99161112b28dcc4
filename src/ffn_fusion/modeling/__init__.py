"""The Hugging Face config and model of a child: small self-contained files that also travel inside the checkpoint."""

# First, since its import registers our classes (ffn_fusion.registration), which must not happen half-way through one.
import transformers  # noqa: F401
