import pytest
import torch
from torch import nn

from stable_audio_tools.models.autoencoders import AudioAutoencoder, OobleckDecoder, OobleckEncoder, chunking
from stable_audio_tools.models.autoencoders.chunking import ChunkPlan, in_batches
from stable_audio_tools.models.autoencoders.seanet import SEANetDecoder, SEANetEncoder
from stable_audio_tools.models.bottleneck import Bottleneck, VAEBottleneck
from stable_audio_tools.models.bottleneck.base import Compressed
from stable_audio_tools.models.bottleneck.dac_rvq import DACRVQBottleneck

RATIO = 64
SIZES = {"channels": 4, "c_mults": [1, 2], "strides": [8, 8]}
HALF_RECEPTIVE_FIELD = 11  # frames, see test_the_receptive_field_is_as_assumed


def make(bottleneck=None, latent_dim=4, strides=(8, 8)):
    torch.manual_seed(0)
    sizes = {**SIZES, "strides": list(strides)}
    multiple = 2 if isinstance(bottleneck, VAEBottleneck) else 1
    return AudioAutoencoder(
        OobleckEncoder(latent_dim=latent_dim * multiple, **sizes),
        OobleckDecoder(latent_dim=latent_dim, **sizes),
        latent_dim=latent_dim,
        downsampling_ratio=strides[0] * strides[1],
        sample_rate=16000,
        bottleneck=bottleneck,
    ).eval()


@pytest.fixture(scope="module")
def model():
    return make()


# ------------------------------------------------------------------ the plan


@pytest.mark.parametrize("overlap", [0, 1, 2, 5, 7])
@pytest.mark.parametrize("frames", [1, 7, 8, 9, 15, 16, 17, 40, 41])
def test_split_and_join_are_inverse(frames, overlap):
    x = torch.arange(frames * 3.0)[None, None]
    for crossfade in (False, True):
        plan = ChunkPlan(frames, 8, overlap, crossfade)
        chunks = plan.split(x, 3)
        assert all(chunk.shape[-1] == 3 * min(8, frames) for chunk in chunks)
        torch.testing.assert_close(plan.join(chunks, 3), x)


def test_chunks_start_every_hop_and_the_last_ends_with_the_clip():
    assert ChunkPlan(40, 16, 4).starts == [0, 12, 24]
    assert ChunkPlan(43, 16, 4).starts == [0, 12, 24, 27]
    assert ChunkPlan(16, 16, 4).starts == [0]
    assert ChunkPlan(3, 16, 4).starts == [0]


@pytest.mark.parametrize("overlap", [4, 5])
def test_overlaps_are_cut_in_their_middle(overlap):
    plan = ChunkPlan(27, 10, overlap)
    chunks = [torch.full((1, 1, 10), float(index)) for index in range(len(plan.starts))]
    joined = plan.join(chunks, 1).flatten().tolist()
    wanted = []
    for frame in range(27):  # the last chunk that has passed the first half of its overlap
        wanted.append(max(i for i, s in enumerate(plan.starts) if i == 0 or frame >= s + overlap // 2))
    assert joined == wanted


def test_crossfade_blends_linearly_over_the_overlap():
    plan = ChunkPlan(12, 8, 4, crossfade=True)
    joined = plan.join([torch.zeros(1, 1, 8), torch.ones(1, 1, 8)], 1).flatten()
    assert joined.tolist() == [0] * 4 + [0.125, 0.375, 0.625, 0.875] + [1] * 4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_joining_keeps_the_dtype(dtype):
    plan = ChunkPlan(12, 8, 4, crossfade=True)
    assert plan.join([torch.zeros(1, 1, 8, dtype=dtype)] * 2, 1).dtype == dtype


@pytest.mark.parametrize(
    ("size", "overlap", "message"),
    [
        (8, 8, r"overlap must be at least 0 and less than chunk_size \(8\), got 8"),
        (8, -1, "got -1"),
        (0, 0, "chunk_size must be at least 1"),
    ],
)
def test_impossible_plans(size, overlap, message):
    with pytest.raises(ValueError, match=message):
        ChunkPlan(40, size, overlap)


# ------------------------------------------------------------------ batches


def batch_sizes(monkeypatch, lengths, clips=1, samples=None, items=None):
    if samples is not None:
        monkeypatch.setattr(chunking, "MAX_BATCH_SAMPLES", samples)
    sizes = []

    def network(x):
        sizes.append(len(x))
        return 2 * x

    chunks = [torch.full((clips, 1, length), float(i)) for i, length in enumerate(lengths)]
    results = in_batches(network, chunks, 1.0, items)
    for chunk, result in zip(chunks, results):
        assert torch.equal(result, 2 * chunk)
    assert len(results) == len(chunks)
    return sizes


def test_chunks_go_together_as_far_as_memory_allows(monkeypatch):
    assert batch_sizes(monkeypatch, [10] * 7, samples=30) == [3, 3, 1]
    assert batch_sizes(monkeypatch, [10] * 3, samples=5) == [1, 1, 1]
    assert batch_sizes(monkeypatch, [10] * 3, clips=4, samples=80) == [8, 4]
    assert batch_sizes(monkeypatch, [10] * 2, clips=4, samples=30) == [3, 1, 3, 1]
    assert batch_sizes(monkeypatch, [10, 10, 13], samples=1000) == [2, 1]


def test_the_bound_may_be_given_as_a_number_of_items(monkeypatch):
    assert batch_sizes(monkeypatch, [10] * 5, items=2) == [2, 2, 1]
    assert batch_sizes(monkeypatch, [10] * 2, clips=3, items=2) == [2, 1, 2, 1]


# ------------------------------------------------------------------ chunked equals whole


def test_the_receptive_field_is_as_assumed(model):
    """Both networks look less than HALF_RECEPTIVE_FIELD frames to either side, and not much less."""
    audio = torch.randn(1, 2, RATIO * 64, requires_grad=True)
    model.encode(audio)[..., 32].sum().backward()
    touched = audio.grad.abs().sum((0, 1)).nonzero().flatten() // RATIO
    latents = torch.randn(1, 4, 64, requires_grad=True)
    model.decode(latents)[..., 32 * RATIO].sum().backward()
    frames = latents.grad.abs().sum((0, 1)).nonzero().flatten()
    for first, last in ((touched.min(), touched.max()), (frames.min(), frames.max())):
        assert 32 - HALF_RECEPTIVE_FIELD <= first <= 32 - 4
        assert 32 + 4 <= last <= 32 + HALF_RECEPTIVE_FIELD


# float32 sums in another order; the values are of order one.
TOLERANCE = {"rtol": 0, "atol": 1e-5}


@torch.no_grad()
@pytest.mark.parametrize("frames", [10, 47, 48, 49, 74, 75, 130])
def test_chunked_equals_whole(model, frames):
    audio = torch.randn(2, 2, RATIO * frames)
    options = {"chunked": True, "chunk_size": 48, "overlap": 2 * HALF_RECEPTIVE_FIELD}
    latents = model.encode_audio(audio, **options)
    torch.testing.assert_close(latents, model.encode(audio), **TOLERANCE)
    torch.testing.assert_close(model.decode_audio(latents, **options), model.decode(latents), **TOLERANCE)


class MeanDecoder(nn.Module):
    """Sees a whole chunk, however long, so that neighbours never agree."""

    def forward(self, latents):
        return latents[:, :2].mean(-1, keepdim=True).expand(-1, -1, latents.shape[-1] * RATIO)


@torch.no_grad()
def test_crossfading_turns_seams_into_slopes():
    model = make()
    model.decoder = MeanDecoder()
    latents = torch.randn(1, 4, 100)

    def largest_step(crossfade):
        joined = model.decode_audio(latents, chunked=True, chunk_size=20, overlap=4, crossfade=crossfade)
        return joined.diff().abs().max().item()

    assert largest_step(True) == pytest.approx(largest_step(False) / (4 * RATIO), rel=1e-2)


@torch.no_grad()
def test_too_little_overlap_differs_at_chunk_ends_and_nowhere_else(model):
    audio = torch.randn(1, 2, RATIO * 100)
    whole = model.encode(audio)
    plan = ChunkPlan(100, 40, 2)
    apart = (model.encode_audio(audio, chunked=True, chunk_size=40, overlap=2) - whole).abs().amax((0, 1)) > 1e-4
    cuts = [start + 1 for start in plan.starts[1:]]
    near = torch.tensor([min(abs(frame - cut) for cut in cuts) <= HALF_RECEPTIVE_FIELD for frame in range(100)])
    assert apart.any() and not (apart & ~near).any()
    assert all(apart[cut - 1 : cut + 1].any() for cut in cuts)


@torch.no_grad()
@pytest.mark.parametrize("extra", [1, 31, 63])
def test_lengths_that_are_no_multiple(model, extra):
    """Whatever one pass makes of the samples past the last frame, chunks make the same."""
    seanet = AudioAutoencoder(
        SEANetEncoder(2, 4, 4, ratios=[8, 8], lstm=0),
        SEANetDecoder(2, 4, 4, ratios=[8, 8], lstm=0),
        latent_dim=4,
        downsampling_ratio=RATIO,
        sample_rate=16000,
    ).eval()
    for autoencoder in (model, seanet):
        audio = torch.randn(1, 2, RATIO * 75 + extra)
        whole = autoencoder.encode(audio)
        torch.testing.assert_close(
            autoencoder.encode_audio(audio, chunked=True, chunk_size=48, overlap=22), whole, **TOLERANCE
        )
    assert whole.shape[-1] == 76  # SEANet pads


@torch.no_grad()
@pytest.mark.parametrize("overlap", [0, 22])
def test_odd_strides(overlap):
    model = make(strides=(7, 9))
    audio = torch.randn(1, 2, 63 * 70)
    latents = model.encode_audio(audio, chunked=True, chunk_size=48, overlap=overlap)
    decoded = model.decode_audio(latents, chunked=True, chunk_size=48, overlap=overlap)
    whole = model.decode(latents)
    assert decoded.shape == whole.shape == (1, 2, 63 * 70 - 8)
    if overlap:
        torch.testing.assert_close(latents, model.encode(audio), **TOLERANCE)
        torch.testing.assert_close(decoded, whole, **TOLERANCE)


@torch.no_grad()
def test_the_result_does_not_depend_on_the_batching(monkeypatch):
    model = make(VAEBottleneck())
    audio = torch.randn(2, 2, RATIO * 90)
    options = {"chunked": True, "chunk_size": 20, "overlap": 4}
    results = []
    for batching in ({}, {"max_batch_size": 3}, {"iterate_batch": True}, {"iterate_batch": 4}):
        torch.manual_seed(7)
        latents = model.encode_audio(audio, **options, **batching)
        results.append((latents, model.decode_audio(latents, **options, **batching)))
    for latents, decoded in results[1:]:
        torch.testing.assert_close(latents, results[0][0], **TOLERANCE)
        torch.testing.assert_close(decoded, results[0][1], **TOLERANCE)


@torch.no_grad()
def test_the_bottleneck_takes_chunks_one_by_one_in_order():
    """So that the noise of a seed is that of chunks encoded one after the other."""
    model = make(VAEBottleneck())
    audio = torch.randn(1, 2, RATIO * 50)
    torch.manual_seed(3)
    got = model.encode_audio(audio, chunked=True, chunk_size=20, overlap=4)
    torch.manual_seed(3)
    plan = ChunkPlan(50, 20, 4)
    wanted = plan.join([model.encode(chunk) for chunk in plan.split(audio, RATIO)], 1)
    torch.testing.assert_close(got, wanted, **TOLERANCE)


def test_gradients_pass_through_chunks(model):
    audio = torch.randn(1, 2, RATIO * 60)
    wanted = torch.autograd.grad(model.encode(audio.requires_grad_()).square().sum(), audio)[0]
    got = torch.autograd.grad(model.encode_audio(audio, chunked=True, chunk_size=48, overlap=22).square().sum(), audio)[
        0
    ]
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------ what is handed on


class Recorder(Bottleneck):
    """Takes any keyword."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def encode(self, x, return_info=False, **kwargs):
        self.seen.append(kwargs)
        return (x, {}) if return_info else x


class ScaledDecoder(nn.Module):
    def forward(self, latents, gain=1.0):
        return gain * latents.repeat_interleave(RATIO, -1)[:, :2]


@torch.no_grad()
@pytest.mark.parametrize("chunked", [False, True])
def test_keywords_reach_bottleneck_and_decoder(chunked):
    model = make(Recorder())
    model.decoder = ScaledDecoder()
    options = {"chunked": chunked, "chunk_size": 20, "overlap": 4}
    latents = model.encode_audio(torch.randn(1, 2, RATIO * 50), **options, taste=3)
    assert model.bottleneck.seen and all(kwargs == {"taste": 3} for kwargs in model.bottleneck.seen)
    decoded = model.decode_audio(latents, **options, gain=2.0)
    torch.testing.assert_close(decoded, 2 * model.decode_audio(latents, **options))


@torch.no_grad()
def test_skipping_the_bottleneck_in_chunks():
    model = make(VAEBottleneck())
    audio = torch.randn(1, 2, RATIO * 60)
    got = model.encode_audio(audio, chunked=True, chunk_size=48, overlap=22, skip_bottleneck=True)
    torch.testing.assert_close(got, model.encode(audio, skip_bottleneck=True), **TOLERANCE)
    assert got.shape[1] == 8


@torch.no_grad()
def test_info_of_chunks_is_that_of_the_whole():
    model = make(DACRVQBottleneck(input_dim=4, n_codebooks=3, codebook_size=16, codebook_dim=2)).eval()
    audio = torch.randn(1, 2, RATIO * 90)
    whole, told = model.encode(audio, return_info=True, n_quantizers=2)
    options = {"chunked": True, "chunk_size": 48, "overlap": 22, "return_info": True, "n_quantizers": 2}
    latents, info = model.encode_audio(audio, **options)
    torch.testing.assert_close(latents, whole, **TOLERANCE)
    assert torch.equal(info["codes"], told["codes"]) and info["codes"].shape == (1, 2, 90)
    torch.testing.assert_close(info["pre_bottleneck_latents"], told["pre_bottleneck_latents"], **TOLERANCE)
    assert info["vq/commitment_loss"].ndim == 0


class TimeFirst(Bottleneck):
    def compress(self, x, *, losses, n_quantizers):
        return Compressed(x, {"codes": x[:, :2].mT, "note": "kept"})


@torch.no_grad()
def test_codes_with_time_before_codebooks_are_joined_too():
    model = make(TimeFirst())
    audio = torch.randn(1, 2, RATIO * 90)
    _, info = model.encode_audio(audio, chunked=True, chunk_size=48, overlap=22, return_info=True)
    assert info["codes"].shape == (1, 90, 2)
    assert info["note"] == ["kept"] * 3


@torch.no_grad()
def test_reconstruction_has_the_length_of_the_audio(model):
    audio = torch.randn(1, 2, RATIO * 90)
    torch.testing.assert_close(model.reconstruct_audio(audio, chunked=False), model.decode(model.encode(audio)))
    rebuilt = model.reconstruct_audio(audio, chunk_size=60, overlap=20)
    assert rebuilt.shape == audio.shape
    # Before the second chunk begins, as far from the end of the first as encoding and decoding together see.
    middle = slice(0, RATIO * (30 - 20))
    torch.testing.assert_close(rebuilt[..., middle], model.decode(model.encode(audio))[..., middle], **TOLERANCE)
    for frames in (5, 60, 61):
        clip = audio[..., : RATIO * frames]
        assert model.reconstruct_audio(clip, max_batch_size=4).shape == clip.shape
