"""Recipes: pruning, quantization and distillation in one training run."""

from fastcompress.recipes.compress import compress
from fastcompress.recipes.distill import distill
from fastcompress.recipes.history import EpochRow, History
from fastcompress.recipes.recipe import Phase, check_recipe, phases_of
from fastcompress.recipes.result import CompressionResult, GivenUp
from fastcompress.recipes.run_settings import RunSettings
from fastcompress.recipes.session import Session
from fastcompress.recipes.stages import DENSE_TEACHER, QAT, Distillation, Pruning, Stage
from fastcompress.recipes.yaml_dump import dump_recipe
from fastcompress.recipes.yaml_file import RecipeFile, load_recipe, parse_recipe

__all__ = [
    "DENSE_TEACHER",
    "QAT",
    "CompressionResult",
    "Distillation",
    "EpochRow",
    "GivenUp",
    "History",
    "Phase",
    "Pruning",
    "RecipeFile",
    "RunSettings",
    "Session",
    "Stage",
    "check_recipe",
    "compress",
    "distill",
    "dump_recipe",
    "load_recipe",
    "parse_recipe",
    "phases_of",
]
