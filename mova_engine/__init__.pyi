"""The public names, for type checkers and editors; `__init__.py` imports each when it is first asked for."""

from mova_engine.adapters import add_lora as add_lora
from mova_engine.adapters import load_lora as load_lora
from mova_engine.adapters import lora_parameters as lora_parameters
from mova_engine.adapters import merge_folder as merge_folder
from mova_engine.adapters import merged_lora as merged_lora
from mova_engine.adapters import remove_lora as remove_lora
from mova_engine.adapters import save_lora as save_lora
from mova_engine.backend import default_backend as default_backend
from mova_engine.backend import get_backend as get_backend
from mova_engine.codecs import build_audio_codec as build_audio_codec
from mova_engine.codecs import build_text_encoder as build_text_encoder
from mova_engine.codecs import build_video_codec as build_video_codec
from mova_engine.codecs import video_from_uint8 as video_from_uint8
from mova_engine.codecs import video_to_uint8 as video_to_uint8
from mova_engine.config.clip import ClipSettings as ClipSettings
from mova_engine.config.curate import CurateConfig as CurateConfig
from mova_engine.config.curation_recipes import load_curation as load_curation
from mova_engine.config.diffusion import LossWeights as LossWeights
from mova_engine.config.memory import MemoryConfig as MemoryConfig
from mova_engine.config.mesh import choose_mesh as choose_mesh
from mova_engine.config.model import MovaConfig as MovaConfig
from mova_engine.config.model import get_preset as get_preset
from mova_engine.config.parallel import ParallelConfig as ParallelConfig
from mova_engine.config.recipes import load_config as load_config
from mova_engine.config.recipes import recipe_names as recipe_names
from mova_engine.config.train import TrainConfig as TrainConfig
from mova_engine.curation.curation_run import Curation as Curation
from mova_engine.data.synthetic.bounce import draw_clips as draw_clips
from mova_engine.diffusion.conditioning import first_frame_condition as first_frame_condition
from mova_engine.diffusion.conditioning import video_input as video_input
from mova_engine.diffusion.guidance import Guidance as Guidance
from mova_engine.diffusion.loss import Share as Share
from mova_engine.diffusion.loss import velocity_loss as velocity_loss
from mova_engine.diffusion.schedule import Schedule as Schedule
from mova_engine.diffusion.schedule import add_noise as add_noise
from mova_engine.diffusion.schedule import velocity_target as velocity_target
from mova_engine.distributed.gradients import sum_gradients as sum_gradients
from mova_engine.distributed.processes import read_launch as read_launch
from mova_engine.distributed.processes import start_processes as start_processes
from mova_engine.errors import MovaError as MovaError
from mova_engine.inference.generated_clip import GeneratedClip as GeneratedClip
from mova_engine.inference.given_clip import GivenClip as GivenClip
from mova_engine.inference.pipeline import Pipeline as Pipeline
from mova_engine.inference.sound_pipeline import GeneratedSound as GeneratedSound
from mova_engine.inference.sound_pipeline import SoundPipeline as SoundPipeline
from mova_engine.models.modality import Modality as Modality
from mova_engine.models.mova import Mova as Mova
from mova_engine.ops import OPERATORS as OPERATORS
from mova_engine.ops import Implementation as Implementation
from mova_engine.ops import Machine as Machine
from mova_engine.ops import Operator as Operator
from mova_engine.ops import OpTable as OpTable
from mova_engine.ops import bind as bind
from mova_engine.ops import choose as choose
from mova_engine.train.trainer import Trainer as Trainer

__version__: str
__all__: list[str]

AUTOLOAD: str
autoload_asked: str | None

def load_devices_when_asked() -> None: ...
