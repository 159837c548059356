"""The parts of ``train_cvae.py``: data, model, training, pictures."""
