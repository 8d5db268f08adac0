"""The other engines on the same model: transformers, llama.cpp and OpenVINO, where they are."""

import json
import math
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from statistics import median

import torch

from server.engine.loading.load import load_transformers
from server.engine.loading.source import DEFAULT_MODEL, cache_folder, resolve_model

Measure = Callable[[], float]
Job = tuple[str, str]
DECODED = 32  # tokens of one measurement


class Transformers:
    """`generate()` in fp32, greedy, one stream."""

    name = "transformers fp32"

    def __init__(self) -> None:
        self._model = load_transformers(resolve_model(DEFAULT_MODEL), torch.float32)
        self._model.generation_config.eos_token_id = None

    def _seconds(self, tokens: int, new: int) -> float:
        ids = torch.arange(tokens)[None] + 100
        started = time.perf_counter()
        with torch.inference_mode():
            self._model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False
            )
        return time.perf_counter() - started

    def decode(self, cached: int) -> Measure:
        """Return a measurement of tokens a second behind `cached` others."""
        new = DECODED // 2
        return lambda: new / (self._seconds(cached, new + 1) - self._seconds(cached, 1))

    def prefill(self, tokens: int) -> Measure:
        """Return a measurement of prompt tokens a second."""
        return lambda: tokens / self._seconds(tokens, 1)


class LlamaBench:
    """`llama-bench` on a GGUF file: a process for each measurement."""

    def __init__(self, folder: Path, gguf: Path, name: str, threads: int) -> None:
        self.name = name
        self._command = [
            str(folder / "llama-bench"), "-m", str(gguf), "-t", str(threads),
            "-r", "1", "-o", "json",
        ]  # fmt: skip

    def _run(self, *arguments: str) -> float:
        done = subprocess.run(
            [*self._command, *arguments], capture_output=True, text=True, check=True
        )
        return float(json.loads(done.stdout)[-1]["avg_ts"])

    def decode(self, cached: int) -> Measure:
        """Return a measurement of tokens a second behind `cached` others."""
        return lambda: self._run("-p", "0", "-n", str(DECODED), "-d", str(cached))

    def prefill(self, tokens: int) -> Measure:
        """Return a measurement of prompt tokens a second."""
        return lambda: self._run("-p", str(tokens), "-n", "0")


class OpenVino:
    """OpenVINO GenAI, which reads the GGUF file itself."""

    name = "openvino genai"

    def __init__(self, gguf: Path) -> None:
        import openvino_genai

        self._genai = openvino_genai
        self._runs = 0
        self._pipeline = openvino_genai.LLMPipeline(str(gguf), "CPU")

    def _milliseconds(self, prompt: int, new: int) -> tuple[float, float]:
        """Return the milliseconds to the first token, and for each further one."""
        import openvino

        config = self._genai.GenerationConfig()
        config.max_new_tokens, config.ignore_eos, config.do_sample = new, True, False
        self._runs += 1  # another prompt each time, so that a prefix cache never helps
        ids = (torch.arange(prompt)[None] + 131 * self._runs) % 40_000 + 100
        given = (openvino.Tensor(t.numpy()) for t in (ids, torch.ones_like(ids)))
        found = self._pipeline.generate(self._genai.TokenizedInputs(*given), config).perf_metrics
        return found.get_ttft().mean, found.get_tpot().mean

    def decode(self, cached: int) -> Measure:
        """Return a measurement of tokens a second behind `cached` others."""
        return lambda: 1e3 / self._milliseconds(cached, DECODED)[1]

    def prefill(self, tokens: int) -> Measure:
        """Return a measurement of prompt tokens a second."""
        return lambda: 1e3 * tokens / self._milliseconds(tokens, 1)[0]


Peer = Transformers | LlamaBench | OpenVino


def ggufs(llama_cpp: Path | None) -> dict[str, Path]:
    """Return the default model's files: as published and, given llama.cpp, converted to Q4_0."""
    folder = cache_folder() / "benchmarks"
    folder.mkdir(parents=True, exist_ok=True)
    published = resolve_model(DEFAULT_MODEL)
    found = {"Q4_1": published}
    if llama_cpp is not None:
        repacked = folder / f"{DEFAULT_MODEL}.Q4_0.gguf"
        if not repacked.exists():
            command = [str(llama_cpp / "llama-quantize"), "--allow-requantize"]
            subprocess.run(
                [*command, str(published), str(repacked), "q4_0"], check=True, capture_output=True
            )
        found["Q4_0"] = repacked
    return found


def peers(llama_cpp: Path | None, threads: int) -> list[Peer]:
    """Return the engines that can run here. `llama_cpp` is the folder of its programs."""
    files = ggufs(llama_cpp)
    found: list[Peer] = [Transformers()]
    if llama_cpp is not None:
        found += [LlamaBench(llama_cpp, g, f"llama.cpp {n}", threads) for n, g in files.items()]
    with suppress(ImportError):
        found.append(OpenVino(files["Q4_1"]))
    return found


def file_peers(llama_cpp: Path | None, gguf: Path, threads: int) -> list[Peer]:
    """Return the engines that read any GGUF file as it is: llama.cpp, where its programs are."""
    if llama_cpp is None:
        return []
    return [LlamaBench(llama_cpp, gguf, f"llama.cpp {gguf.stem}", threads)]


def interleaved(
    jobs: Mapping[Job, Measure], repeats: int, until: float = math.inf
) -> dict[Job, list[float]]:
    """Run every job in turn, so that a change of the machine's speed meets all alike.

    The first of `repeats + 1` rounds is a warm-up and not returned. Ends early where the next job
    would not end before the time `until` of the monotonic clock; jobs without a value are left out.
    """
    found: dict[Job, list[float]] = {key: [] for key in jobs}
    took = dict.fromkeys(jobs, 0.0)
    for turn in range(repeats + 1):
        for key, job in jobs.items():
            started = time.monotonic()
            if started + took[key] > until:
                return {key: values for key, values in found.items() if values}
            value = job()
            took[key] = time.monotonic() - started
            if turn:
                found[key].append(value)
    return found


def medians(found: dict[Job, list[float]]) -> dict[Job, float]:
    """Return the median of each job."""
    return {key: median(values) for key, values in found.items()}
