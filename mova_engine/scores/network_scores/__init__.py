"""One decoded clip measured by one network: numbers, and the features that sets of clips are judged by."""
