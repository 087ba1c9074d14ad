"""Experiments on simulated heads with known truth: networks by the same rules, and methods without a network.

An :class:`Arm` says what is trained and tested on which :class:`Cohort`; running it appends one JSON line to a results
file, and an arm whose line is there is skipped.  Figures and `docs/results.md` are drawn from those lines alone.

Run: python -m benchmarks.experiments lesions|pretraining|generalisation|all|page [--size small|cpu|full]
"""
