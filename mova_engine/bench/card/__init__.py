"""The day there is a card: everything that is to be measured on one, in slices of some minutes, by one command."""
