"""How much an adversary, a broken judge and a broken file achieve: counts, each meant to be nothing.

    python benchmarks/hardening.py                all measures, figures recorded; about ten minutes on two busy cores
    python benchmarks/hardening.py --fuzz 1000    a quick look at smaller sizes, nothing recorded

The cases come from `tests/support`, from a seed; the tests run the same measures smaller. What is measured is
structure: scripted judges that fall for all they can, real tokenizers, real chat templates, real decoders. How often a
real judge model follows an instruction in a candidate is a rate of that model and not measured here. Times are
processor time.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import resource
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from figures import record

from flexjudge_reward import Example, Generation, Judge, Media, MediaError, ScriptedEngine, ServerEngine, Verdict
from flexjudge_reward.formats.builtin import FORMATS
from flexjudge_reward.prompts import quoting
from flexjudge_reward.prompts.quoting import KNOWN_CONTROL_TOKENS, neutralise
from support import attacks, families, images, measures, sounds
from support.fault_server import FaultServer

FUZZ = 50_000
_TURNS = frozenset({"<|im_start|>", "<|im_end|>"})
SEED = 20_261_122

Recorder = Callable[..., None]


def bad_media(put: Recorder, seed: int) -> None:
    """Damaged files, bombs and cut videos (R2, S11): each decoded or a MediaError, soon, in little memory."""
    files = [("image", *file) for file in (*images.damaged(), *images.bombs())]
    files += [("video", *file) for file in _videos()]
    # A fresh process: here, the encoders that made the videos have already taken more memory than any decoder will.
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        wrong, kinds, slowest, grown = pool.apply(_harm, (files,))
    print(*wrong, sep="\n", end="\n" if wrong else "")
    note = f"{len(files)} damaged, hostile or cut files: {kinds}; slowest {slowest:.2f} s of processor time"
    put("hardening.bad_media_harm", len(wrong), unit="files", target="<= 0", note=note)
    put("hardening.bad_media_memory_mb", grown, unit="MB", target="<= 96", note="growth of the peak over all of them")


def _harm(files: list[tuple[str, str, bytes]]) -> tuple[list[str], dict[str, int], float, float]:
    """What went wrong, how many files were decoded and refused, the slowest's seconds, the growth of memory in MB."""
    warnings.simplefilter("ignore")  # Pillow's, on damaged files
    good, mate = Media.image(images.saved(images.noise())), Media.image(images.noise())
    heard, sound = Media.audio(sounds.coded("flac", "flac", 48_000)), Media.audio(sounds.coded("flac", "flac", 48_000))
    good.load()
    heard.load()
    Path("/proc/self/clear_refs").write_text("5")  # the files came through a pipe: that peak is not the decoders'
    before, slowest, wrong, kinds = _peak_mb(), 0.0, [], Counter[str]()
    for kind, name, data in files:
        start = _seconds()
        try:
            Media.of(kind, data).load()
            kinds["decoded"] += 1
        except MediaError:
            kinds["refused"] += 1
        except Exception as error:  # the finding
            wrong.append(f"{name}: {error!r}")
        taken = _seconds() - start
        slowest = max(slowest, taken)
        if taken > 2:
            wrong.append(f"{name}: {taken:.1f} s")
    if mate != good or sound != heard:
        wrong.append("a good image or sound changed")
    return wrong, dict(kinds), slowest, _peak_mb() - before


def bad_sounds(put: Recorder, seed: int) -> None:
    """200 broken, huge, lying and hostile sound files: each typed or decoded within 2 s, in little memory."""
    files = [("audio", *file) for file in sounds.bad()]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        wrong, kinds, slowest, grown = pool.apply(_harm, (files,))
    print(*wrong, sep="\n", end="\n" if wrong else "")
    note = f"of {len(files)} files: {kinds}; slowest {slowest:.2f} s of processor time, memory +{grown:.0f} MB"
    harmless = (len(files) - len(wrong)) / len(files) if grown <= 96 else 0.0
    put("audio.bad_files_typed", harmless, unit="fraction", target=">= 1", note=note)


PHOTOS, PHOTO = 64, (4000, 3000)


def batch_memory(put: Recorder, photos: int) -> None:
    """A batch of photographs of 12 MP, with an engine in this process and with a server (R2)."""
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, f"{number}.jpg") for number in range(photos)]
        for number, file in enumerate(files):
            file.write_bytes(images.saved(images.photo(*PHOTO, seed=number), "JPEG", quality=88))
        size = sum(file.stat().st_size for file in files) / photos / 1e6
        with FaultServer() as server:
            for name, url in (("ScriptedEngine", ""), ("ServerEngine", server.url)):
                with multiprocessing.get_context("spawn").Pool(1) as pool:  # a fresh process, as above
                    grown, seconds, failures = pool.apply(_judged_photos, (files, url))
                print(*failures, sep="\n", end="\n" if failures else "")
                note = f"{photos} JPEG files of 12 MP and {size:.1f} MB through {name}; {seconds:.0f} s"
                put(
                    f"hardening.batch_memory_mib{'_server' if url else ''}",
                    grown,
                    unit="MiB",
                    target="<= 1024",
                    note=note,
                )


def _judged_photos(files: list[Path], url: str) -> tuple[float, float, list[str]]:
    """The growth of the peak of memory in MiB over one batch, its seconds, and what failed."""
    engine = ServerEngine(url) if url else ScriptedEngine(lambda request: "<think>so</think><answer>7</answer>")
    judge = Judge(FORMATS["pointwise"](), engine)
    judge([Example([Media.image(images.noise()), "item warm"], ["a"])])
    before, start = _peak_mb(), time.perf_counter()
    batch = [
        Example([Media.image(file.name, roots=[file.parent]), f"item {number}"], ["a"])
        for number, file in enumerate(files)
    ]
    failures = [str(verdict.failure) for verdict in judge(batch) if verdict.failure]
    grown, seconds = _peak_mb() - before, time.perf_counter() - start
    judge.close()
    return grown, seconds, failures


def malformed(put: Recorder, seed: int) -> None:
    """Replies that are no verdict (R1): each a typed failure."""
    typed, count, classes = 0, 0, set()
    for name in FORMATS:
        for kind, reply, verdict in measures.malformed_verdicts(name, seed):
            failed = isinstance(verdict, Verdict) and verdict.scores is None and verdict.failure is not None
            typed, count = typed + failed, count + 1
            classes.add(kind)
            if not failed:
                print(attacks.worst([(f"{name}: {kind}", reply, verdict)]))
    note = f"{count} replies in {len(classes)} classes over {len(FORMATS)} formats"
    put("hardening.malformed_typed", typed / count, unit="fraction", target=">= 1", note=note)


def parser_cost(put: Recorder, seed: int) -> None:
    """A megabyte that is hard on parsers that backtrack (R18)."""
    format, judged = FORMATS["pointwise"](), measures.example("pointwise")

    def taken(text: str) -> float:
        times = []
        for _ in range(3):
            start = time.process_time()
            format.read(judged, [Generation(text)])
            times.append(time.process_time() - start)
        return min(times)

    one, four = attacks.megabytes(1_000_000), attacks.megabytes(4_000_000)
    costs = {name: taken(text) for name, text in one.items()}
    growth = {name: taken(four[name]) / cost for name, cost in costs.items() if cost > 0.005}
    worst = max(costs, key=costs.__getitem__)
    note = (
        f"slowest of {len(costs)} shapes ({worst}); four times the text takes {max(growth.values(), default=0):.1f} x"
    )
    put("hardening.parser_ms_per_mb", 1000 * costs[worst], unit="ms", target="<= 50", note=note)


def forged(put: Recorder, seed: int) -> None:
    """Forged answers in candidates, questions and references (S2)."""
    family, wins, count, naive = families.chatml(), 0, 0, Counter[str]()
    tried: Counter[str] = Counter()
    for name in FORMATS:
        for judge, case, won in measures.forged(name, family):
            wins, count = wins + won, count + 1
            if won:
                print(f"{name} {judge} {case.form} {case.place}")
        for judge, _, won in measures.forged(name, family, read=measures.naive_read):
            naive[judge], tried[judge] = naive[judge] + won, tried[judge] + 1
    rates = ", ".join(f"{judge} {naive[judge] / tried[judge]:.0%}" for judge in tried)
    note = f"{count} attempts: 30 forms x 20 cases x 6 scripted judges x 5 formats; first-tag reader, no fence: {rates}"
    put("hardening.forged_success", wins, unit="count", target="<= 0", note=note)


def control_tokens(put: Recorder, seed: int, fuzz: int) -> None:
    """Fuzz texts against the added tokens of three tokenizers (S1)."""
    changed, rates = 0, []
    for build in (families.chatml, families.metaspace, families.nano):
        family = build()
        found = measures.control_changes(family, fuzz, seed)
        print(*map(ascii, found[:5]), sep="\n", end="\n" if found else "")
        few = min(fuzz, 2_000)
        rates.append(f"{family.name} {len(_unprotected(family, few, seed)) / few:.0%}")
        changed += len(found)
    note = f"{fuzz:,} texts on each of 3 tokenizers; without neutralising: {', '.join(rates)}"
    put("hardening.control_token_changes", changed, unit="count", target="<= 0", note=note)


def spellings(put: Recorder, seed: int, fuzz: int) -> None:
    """The same texts without a tokenizer: no token in any form that a normaliser makes of the result (S1)."""
    left = [text for tokens in (_TURNS, KNOWN_CONTROL_TOKENS) for text in measures.survivors(tokens, fuzz, seed)]
    print(*map(ascii, left[:5]), sep="\n", end="\n" if left else "")
    note = f"{fuzz:,} texts on each of 2 sets of tokens, {len(measures.NORMALISERS)} forms of each"
    put("hardening.tokens_left", len(left), unit="count", target="<= 0", note=note)


def benign(put: Recorder, seed: int, lines: int) -> None:
    """Text that tries nothing stays byte for byte, and what that costs."""
    tokens = KNOWN_CONTROL_TOKENS | families.chatml().chat.tokens | families.metaspace().chat.tokens
    corpus = list(attacks.benign(random.Random(seed), lines))
    changed = [line for _, line in corpus if neutralise(line, tokens) != line]
    print(*changed[:5], sep="\n", end="\n" if changed else "")
    note = f"{len(corpus):,} lines of code, SMILES, LaTeX, CJK, maths and emoji; {len(changed)} changed"
    put("hardening.benign_unchanged", 1 - len(changed) / len(corpus), unit="fraction", target=">= 0.999", note=note)
    text = "\n".join(line for _, line in corpus)
    start = time.process_time()
    neutralise(text, tokens)
    cost = 1000 * (time.process_time() - start) / (len(text) / 1e6)
    put("hardening.neutralise_ms_per_mb", cost, unit="ms", target="", note=f"{len(tokens)} tokens, the lines above")


def _videos() -> Iterator[tuple[str, bytes]]:
    for container, codec in (("mp4", "libx264"), ("webm", "libvpx"), ("avi", "mpeg4")):
        whole = images.clip(container, codec)
        for index in range(1, 20):
            yield f"{container} cut at {index} of 20", whole[: len(whole) * index // 20]
    at = whole.index(b"strh") + 40
    yield "AVI that claims 100,000 frames", whole[:at] + (100_000).to_bytes(4, "little") + whole[at + 4 :]


def _unprotected(family: families.Family, count: int, seed: int) -> list[str]:
    real = quoting.neutralise
    quoting.neutralise = lambda text, tokens=(): text  # type: ignore[assignment]
    try:
        return measures.control_changes(family, count, seed)
    finally:
        quoting.neutralise = real


def _seconds() -> float:
    """Processor time of this process and its finished children: the machine may be busy with other things."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def _peak_mb() -> float:
    """Of this program since it started; getrusage would count what the parent had when it started it."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fuzz", type=int, default=FUZZ, help=f"texts per tokenizer (default {FUZZ})")
    parser.add_argument("--seed", type=int, default=SEED)
    options = parser.parse_args()
    whole = options.fuzz >= FUZZ

    def put(name: str, value: float, **about: str) -> None:
        if whole:
            record(name, value, **about)  # type: ignore[arg-type]
        else:
            print(f"{name} = {value:g} {about}")

    bad_media(put, options.seed)
    bad_sounds(put, options.seed)
    batch_memory(put, PHOTOS if whole else 8)
    malformed(put, options.seed)
    parser_cost(put, options.seed)
    forged(put, options.seed)
    benign(put, options.seed, 2 * options.fuzz)
    control_tokens(put, options.seed, options.fuzz)
    spellings(put, options.seed, options.fuzz)


if __name__ == "__main__":
    main()
