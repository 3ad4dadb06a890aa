"""A model family: ELECTRA. Here a tiny one with random weights and MiniLM's vocabulary."""

import tempfile
from pathlib import Path

import torch
from transformers import ElectraConfig, ElectraModel

import fedaipc as fa

fa.register_family(fa.ModelFamily(model_type="electra", shape=("embedding_size",)))


def make_base(folder: Path) -> Path:
    """A base folder as one would download it; the embeddings are as wide as the layers."""
    minilm = Path(fa.fetch("minilm-l6"))
    torch.manual_seed(0)
    config = ElectraConfig(
        vocab_size=30522, embedding_size=32, hidden_size=32, num_hidden_layers=2,
        num_attention_heads=2, intermediate_size=64, max_position_embeddings=64,
    )  # fmt: skip
    ElectraModel(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        if (minilm / name).is_file():
            (folder / name).write_bytes((minilm / name).read_bytes())
    return folder


def main() -> fa.Run:
    with tempfile.TemporaryDirectory() as folder:
        base = make_base(Path(folder))
        job = fa.Job(model=fa.TextClassifier(str(base), train=fa.LoRA(rank=2)), rounds=2)
        data = fa.load_data("sms-spam", limit=400)
        return fa.simulate(job, data.partition(clients=3))


if __name__ == "__main__":
    print(main())
