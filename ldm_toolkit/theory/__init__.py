"""The formulas that training and evaluation rest on: pure functions, each with its source.

``diffusion``: the forward process, what networks predict, the step back; ``bound``: the variational
bound of a diffusion model; ``variational``: autoencoders; ``gan``: adversarial losses;
``divergences``: KL and Jensen-Shannon; ``samplers``: DDPM, DDIM and LMS.
"""
