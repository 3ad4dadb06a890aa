"""What is promised, what it costs, and training that keeps the promise.

plan.py             unit, clip, noise and sampling of a job; public size classes
signal.py           whether the noise of a job drowns what it can learn
accountant.py       epsilon of a schedule by RDP, PRV and PLD; noise for a target epsilon
ledger.py           what a PC has spent over its life: durable, charged before training
randomness.py       AES-CTR keyed by the operating system: Gaussian noise, Poisson sampling
norms.py            norms of per-example gradients that rounding cannot make too small
layer_gradients.py  what each kind of layer knows of its per-example gradients
bookkeeping.py      an Opacus module that clips with them, without forming them
dp_sgd.py           a private step: sample, clip, sum, noise, divide, step
training.py         one PC's local steps of one round
"""
