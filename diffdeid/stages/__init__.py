"""The stages of the method, in the paper's order; `refine` is not in the paper.

detect, reconstruct, identity, condition, denoise, register, refine, verify, compose
"""
