"""Attacks on real runs: what an attacker could learn, compared with what was promised.

bound.py       epsilon's lower bound from guesses, with confidence
canary_clients.py  a run with canaries that are in or out by a coin, and what its server saw
canary.py      guess the coins from each PC's updates (one-run audit)
membership.py  guess who was trained on from the released model, by loss and with shadow models
inversion.py   read words out of one update, a private update, a sealed upload, a sum
gradients.py   per-example gradients by autograd, one at a time
page.py        all of it on one page, with plots
"""
