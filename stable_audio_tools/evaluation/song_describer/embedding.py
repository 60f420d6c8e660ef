"""The tracks and captions of Song Describer to a file of vectors that checkpoints are judged by."""

from typing import NamedTuple

import numpy as np

from stable_audio_tools.core.devices import process_device
from stable_audio_tools.core.errors import UserError
from stable_audio_tools.evaluation.embedders import Frames, TextEmbedder, create_embedder, mean_vector
from stable_audio_tools.evaluation.embedders.presets import node_of
from stable_audio_tools.evaluation.embedding import embed_files
from stable_audio_tools.evaluation.settings import EmbedTracksSettings
from stable_audio_tools.evaluation.song_describer.captions import TRAINING_STYLE, in_training_style, read_captions
from stable_audio_tools.evaluation.song_describer.references import clap_node, write_references


class EmbeddedTracks(NamedTuple):
    """Counts of what was written."""

    captions: int
    tracks: int
    left_out: int  # tracks


def embed_tracks(settings: EmbedTracksSettings) -> EmbeddedTracks | None:
    """Write the file of references; None in a process that is done while others still embed."""
    captions, missing = read_captions(settings.csv_path, settings.audio_dir, settings.limit)
    if settings.prompt_source == "training_style":
        module = settings.custom_metadata_module or TRAINING_STYLE
        captions = in_training_style(captions, settings.prompt_seed, module)
    node = node_of(settings.embedder) if settings.embedder else clap_node(settings.clap_model_name)
    embedder = create_embedder(node, process_device(settings.device))
    cache = settings.cache_dir or settings.output_path.parent / "embeddings"
    tracks = {str(caption.audio): caption.audio for caption in captions}
    found = embed_files(embedder, tracks, cache, settings.audio_batch_size, settings.num_workers, "tracks")
    if found is None:
        return None
    kept = [caption for caption in captions if str(caption.audio) in found.frames]
    if not kept:
        raise UserError(f"{settings.audio_dir}: none of {len(tracks)} tracks could be embedded")
    audio = np.stack([mean_vector(found.frames[str(caption.audio)]) for caption in kept])
    texts: Frames = np.zeros((len(kept), 0), np.float32)
    if isinstance(embedder, TextEmbedder):
        texts = embedder.embed_texts([caption.prompt for caption in kept], settings.text_batch_size)
    write_references(settings.output_path, kept, audio, texts, embedder, node)
    return EmbeddedTracks(len(kept), len(found.frames), len(missing) + len(found.failed))
