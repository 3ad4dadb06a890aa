"""Privacy-preserving federated fine-tuning of BERT-class models on many AI PCs."""

__version__ = "0.1.0"
