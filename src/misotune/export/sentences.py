"""What was proved of a checkpoint, in sentences with numbers."""

from misotune.export.adapter import MergeProof
from misotune.export.probe import TRAINED_MODEL
from misotune.export.proof import Proof


def proof_sentences(proof: Proof, merge: MergeProof | None) -> list[str]:
    """Returns what was proved, a sentence each.

    Args:
        proof: Of the checkpoint.
        merge: Of an adapter that was merged.
    """
    opener = "transformers alone" if proof.num_adapted is None else "transformers and peft"
    owner = proof.compared_with
    lines = [
        f"Opened in a fresh process by {opener}: {proof.num_parameters:,} weights in "
        f"{proof.dtype}, all names there, all finite.",
        f"Its logits differ from {owner}'s by {proof.difference:.1e} (relative; "
        f"{proof.tolerance:.0e} passes), and {proof.num_same_token} of {proof.num_positions} next tokens are the same.",
        f"Its chat template gives the tokens of {'training' if owner == TRAINED_MODEL else 'the exported one'}; "
        f"generation stops at token {proof.end_of_turn_id}; "
        f"it generated {proof.num_new_tokens} tokens{' and stopped' if proof.is_ended else ''}.",
    ]
    if proof.num_adapted is not None:
        lines.append(f"The adapter changes {proof.num_adapted} modules.")
    if merge is not None:
        lines.append(
            f"LoRA merged: {merge.num_changed} of {merge.num_modules} modules changed, "
            f"{merge.share:.1%} of the adapter's change arrived; logits differ from base "
            f"plus adapter by {merge.difference:.1e} ({merge.tolerance:.0e} passes), the adapter moved them by "
            f"{merge.shift:.1e}."
        )
    if merge is not None and merge.quantization != "none":
        lines.append(
            f"Trained on the base model with its linear layers quantised to {merge.quantization}: the adapter is "
            f"merged into those quantised weights, written out in {proof.dtype}, and not into the published ones; "
            f"the base model's logits differ by {merge.quantization_shift:.1e} between the two."
        )
    return lines
