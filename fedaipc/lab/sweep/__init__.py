"""Many runs of one job with other settings, and what they tell.

run.py     the command's and the API's one way in; its result, also on one page
cells.py   the sweep file, and the cells that follow from it
runner.py  one process for each cell, several at a time; continues after a crash
progress.py  how far it is, and how that is shown
table.py   what finished cells measured, as rows, CSV and JSON
plots.py   utility against epsilon, heat maps
search.py  choose settings by a tuner instead of a grid
cost.py    what choosing the best of many private runs costs
"""
