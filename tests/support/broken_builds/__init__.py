"""Wrong builds, made by injection, and what catches each of them."""
