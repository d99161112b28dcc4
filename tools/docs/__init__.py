"""The generated parts of docs/, a file for each page or topic: cog writes what these return between its markers.

``python tools/docs.py`` has it do so.
"""

from tools.docs.api import api_table
from tools.docs.benchmarking import fusing_table, speed_results
from tools.docs.command_line import exit_codes, help_texts
from tools.docs.demo import demo_table, headline_table
from tools.docs.families import family_table
from tools.docs.hardware import (
    hardware_drafts,
    hardware_elsewhere,
    hardware_gpu_results,
    hardware_results,
    machine_sources,
    machine_table,
)
from tools.docs.larger_than_memory import analysis_results, scale_table
from tools.docs.measured import benchmark_table, results
from tools.docs.portability import engine_reasons, engine_table, fixes_table
from tools.docs.quantisation import quantize_results
from tools.docs.qwen import families_table, qwen_plans, qwen_table, qwen_time
from tools.docs.recipe import recipe_table
from tools.docs.repair import repair_scale
from tools.docs.search import columns_table, resources_table, search_results
from tools.docs.tensor_parallel import tensor_parallel_results

__all__ = [
    "analysis_results", "api_table", "benchmark_table", "columns_table", "demo_table", "engine_reasons", "engine_table",
    "exit_codes", "families_table", "family_table", "fixes_table", "fusing_table", "hardware_drafts",
    "hardware_elsewhere", "hardware_gpu_results", "hardware_results", "headline_table", "help_texts",
    "machine_sources", "machine_table", "quantize_results", "qwen_plans", "qwen_table", "qwen_time", "recipe_table",
    "repair_scale", "resources_table", "results", "scale_table", "search_results", "speed_results",
    "tensor_parallel_results",
]  # fmt: skip
