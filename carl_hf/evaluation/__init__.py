"""Measuring encoders. A task takes embeddings or an `encode` callable and gives figures; none knows a model class."""
