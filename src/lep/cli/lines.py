"""Until library functions return results that print themselves: what the command line prints of records."""

from pathlib import Path
from typing import Any


def pretrained(record: dict[str, Any]) -> str:
    lines = []
    if sweep := record.get("sweep"):
        looked = "; ".join(f"{rate}: {bits}" for rate, bits in sweep["bits_per_byte"].items())
        lines.append(f"bits per byte by rate: {looked}; the best one, {sweep['best']:g}, was taken")
    lines.append(
        f"{record['tokens']:,} tokens in {record['seconds']} s; "
        f"loss {record['losses'][-1]['loss']:.3f} nats a token"
    )
    if not record["documents_isolated"]:
        lines.append(
            "this architecture does not look at positions: documents in a block saw those before them"
        )
    return "\n".join(lines)


def changes(record: dict[str, Any]) -> str:
    """What became of a tokenizer, in two or three lines."""
    lines = [
        f"{record['size_before']:,} tokens before, {record['size']:,} after: {record['kept']:,} kept, "
        f"{record['moved']:,} moved, {record['new']:,} new, {record['dropped']:,} dropped"
    ]
    if record.get("script"):
        lines.append(
            f"new tokens are of the {record['script']} script; text without it is tokenised by the "
            "known tokens alone"
        )
    sample = record["corpus_sample"]
    if sample["characters"]:
        before, after = (
            sample["characters"] / sample[name] for name in ("tokens_before", "tokens_after")
        )
        lines.append(f"symbols per token on the corpus: {before:.2f} before, {after:.2f} after")
    if record.get("excluded"):
        excluded = " ".join(record["excluded"][:40])
        lines.append(f"text with one of these characters may be tokenised differently: {excluded}")
    return "\n".join(lines)


def built(record: dict[str, Any], output: Path, settings: Any) -> str:
    written = record["written"]
    lines = [(output / "sheet.md").read_text(encoding="utf-8")]
    if taken := record["boilerplate"]["lines"]:
        lines.append(
            f"{taken:,} lines were taken out that are in {settings.boilerplate:,} documents or more"
        )
    if settings.cover:
        reached = record["coverage"]
        lines.append(
            f"{reached['covered']:,} of {reached['new_tokens']:,} new tokens occur "
            f"{settings.contexts:,} times or more, {reached['without_any']:,} never; "
            f"{reached['documents_left_out']:,} documents were not needed"
        )
    lines.append(
        f"{written['documents']:,} documents, {written['characters']:,} characters; "
        f"sha256 {written['sha256'][:16]}"
    )
    return "\n".join(lines)


def propagated_auto(models: tuple, output: Path, text: Any, prompts: str, *settings: Any) -> str:
    from lep.cli.verb import say
    from lep.selection.auto import BodyTooLarge, label, propagate_auto, weight_report

    try:
        selection = propagate_auto(*models, output, text, prompts, *settings)
    except BodyTooLarge:
        say(weight_report(*models))
        raise
    lines = [
        selection.table(),
        f"chosen: {label(selection.chosen)}; on the reported half: {label(selection.best_reported)}",
    ]
    if why := selection.vetoed.get(selection.chosen):
        lines.append(
            f"every candidate does more harm than is allowed; the one that was taken: {why}"
        )
    return "\n".join(lines)


def forecast(models: tuple, settings: Any) -> str:
    from lep.transfer.dry_run import plan_propagation
    from lep.transfer.family import Family

    return str(plan_propagation(Family.open(*models), settings))


def propagated(fits: dict[str, Any]) -> str:
    return "\n".join(
        f"{table}: held-out residual {fit.heldout:.4f} (identity {fit.identity:.4f}) on {fit.rows:,} rows"
        for table, fit in fits.items()
    )


def packed(pack: Any, output: Path) -> str:
    rows = ", ".join(f"{len(rows):,} {kind} rows" for kind, (rows, _) in pack.learned.items())
    return f"{rows}; {output.stat().st_size / 1e6:.1f} MB"


def applied(kinship: dict[str, float]) -> str:
    return "\n".join(
        f"{kind}: rows like the base's by a mean cosine of {cosine:.3f}"
        for kind, cosine in kinship.items()
    )
