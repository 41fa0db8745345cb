"""Data sets as tensors, whatever holds them, and the batched augmentation of both tasks."""
