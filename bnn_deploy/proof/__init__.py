"""The equivalence proof: a converted model against the float network that it came from."""
