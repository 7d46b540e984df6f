"""The federated methods, one file each. None imports another; `blackbox.federation.registry` finds them all."""
