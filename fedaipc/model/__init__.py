"""A BERT-family text classifier, split where its frozen part ends.

base.py        where a base lies (an asset, a folder or a hub id), and its hash
load.py        its weights and tokenizer
classifier.py  the model: a frozen lower part, a trained upper part, their flat vector
inputs.py      texts of a PC -> tokens -> frozen states, computed once and kept in a file
predict.py     logits over many texts
export.py      the result as safetensors that transformers and peft load by themselves
device.py      which device and dtype, and why
"""
