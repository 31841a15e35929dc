"""The training loop and the runs on it: pretraining, fine-tuning, distillation.

May use evaluation.
"""
