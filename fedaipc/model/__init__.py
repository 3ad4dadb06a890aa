"""A BERT-family text classifier, split where its frozen part ends.

base.py        where a base lies (an asset, a folder or a hub id), and its hash
load.py        its weights and tokenizer; the only module that lets transformers open files
classifier.py  the model: a frozen lower part, a trained upper part, their flat vector
inputs.py      texts of a PC -> tokens -> frozen states, computed once and kept in a file
predict.py     logits over many texts
export.py      the result as a folder that transformers and peft load by themselves
card.py        the model card in that folder
device.py      which device and dtype, and why
"""
