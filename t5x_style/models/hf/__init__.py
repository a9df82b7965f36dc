"""Weights in the layouts of Hugging Face repositories, both ways: `export` and `checkpoint`.

The only place that touches safetensors. Nothing here runs code that came with a checkpoint: a
repository is JSON, safetensors and a SentencePiece model, and everything else in it is left alone.
"""
