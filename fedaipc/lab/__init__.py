"""The privacy lab: what a budget buys, before anything is trained.

planner.py  any one unknown of a schedule from the others; what follows from it
chart.py    its curve and trade-off as a picture
"""
