"""Alignment by sampling in the loop: COOL RLHF (arXiv 2403.17297, section 4.2)."""
