"""What runs: compiled Programs, Sessions and weights computed ahead."""
