"""A prompt becomes a picture by hand, cell by cell, and is the pipeline's own at the end.

Open it in an editor that knows ``# %%`` cells (VS Code, Spyder, PyCharm, jupytext), or run it:
python examples/walkthrough.py
"""

# %% [markdown]
# # From a prompt to a picture
# `ldm-explain "a dog wearing hat" --seed 42 --steps 20` shows all of this in pictures.

# %%
import torch

from ldm_toolkit import LatentPipeline
from ldm_toolkit.latents import pixels_to_pil
from ldm_toolkit.theory.samplers import ddim_step

prompt, steps, guidance, seed = "a dog wearing hat", 20, 7.5, 42
pipe = LatentPipeline.from_pretrained("storybook")
model = pipe.components
width, height = model.defaults.width, model.defaults.height

# %% [markdown]
# ## Tokens
# The tokenizer knows pieces of words; 77 of them are read at once: a start, the prompt, an end, and
# padding. The negative prompt, here the empty one, is what guidance goes away from.

# %%
ids = pipe.tokenize(prompt)
negative_ids = pipe.tokenize("")
print(len(ids), "tokens:", model.tokenizer.convert_ids_to_tokens(ids[:8]), "...")

# %% [markdown]
# ## Embeddings
# The text encoder makes a vector of each token. What `pipe.encode_prompt` gives is the same.

# %%
with torch.no_grad():
    embeddings = torch.cat(
        [
            model.text_encoder(torch.tensor([row], device=model.device)).last_hidden_state
            for row in (negative_ids, ids)
        ]
    )
print("embeddings:", tuple(embeddings.shape))
print("as encode_prompt gives them:", torch.equal(embeddings, pipe.encode_prompt(["", prompt])))

# %% [markdown]
# ## Latents
# The picture starts as noise, in the small space of the autoencoder. The seed decides all of it.

# %%
shape = (1, *model.latent_shape(width, height))
noise = torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed))
fewer = 3 * width * height / noise.numel()
print("latents:", shape, f"- {fewer:g} times fewer numbers than the picture has")

# %% [markdown]
# ## The scheduler
# It says at which timesteps the network is asked, and how much of x_t is noise there: alpha_bar is
# the share of the signal in its square. DDIM keeps x_t = sqrt(alpha_bar) x_0 +
# sqrt(1 - alpha_bar) noise.

# %%
scheduler = pipe.make_scheduler("ddim")
scheduler.set_timesteps(steps)
for t in scheduler.timesteps[:: max(1, steps // 4)]:
    print(f"t = {int(t):3d}: alpha_bar {float(scheduler.alphas_cumprod[t]):.4f}")

# %% [markdown]
# ## Guidance
# The UNet predicts the noise (or v, a mixture of noise and x_0) twice, without and with the prompt.
# The guided prediction goes past the second one, away from the first.


# %%
def guided_prediction(latents: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """What the network predicts at x_t and t, guided."""
    prediction = pipe.predict_noise(torch.cat([latents, latents]), t, embeddings)
    unconditional, conditional = prediction.chunk(2)
    return unconditional + guidance * (conditional - unconditional)


# %% [markdown]
# ## One step
# From the prediction follow the x_0 and the noise that it means; the step mixes them again, with
# less noise. `theory.samplers.ddim_step` is that formula, the scheduler's step computes the same.

# %%
t, previous = scheduler.timesteps[0], scheduler.timesteps[1]
latents = noise.to(model.device)
prediction = guided_prediction(latents, t)
alpha_bar, alpha_bar_previous = scheduler.alphas_cumprod[t], scheduler.alphas_cumprod[previous]
by_hand = ddim_step(
    prediction,
    latents,
    torch.zeros_like(latents),
    alpha_bar,
    alpha_bar_previous,
    kind=scheduler.config.prediction_type,
)
difference = (by_hand - scheduler.step(prediction, t, latents).prev_sample).abs().max()
print(f"one step by hand and by the scheduler differ by {float(difference):.1e}")

# %% [markdown]
# ## All steps
# Nothing but the same again, from noise to x_0.

# %%
latents = noise.to(model.device)
for t in scheduler.timesteps:
    latents = scheduler.step(guided_prediction(latents, t), t, latents).prev_sample

# %% [markdown]
# ## Decoding
# The autoencoder's decoder makes pixels from -1 to 1 of the latents.

# %%
pixels = pipe.decode_latents(latents)
picture = pixels_to_pil(pixels)[0]
picture.save("walkthrough.png")

# %% [markdown]
# ## The same in one call

# %%
result = pipe(prompt, steps=steps, guidance=guidance, seed=seed, scheduler="ddim")
same = picture.tobytes() == result.images[0].tobytes()
print("walkthrough.png is", "the pipeline's picture" if same else "another picture")
