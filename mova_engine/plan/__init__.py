"""The command `mova plan`: predictions of `predict`, and what to do about them."""
