"""The methods, one file each. They never import one another; `blackbox.algorithm.registry` finds them all."""
