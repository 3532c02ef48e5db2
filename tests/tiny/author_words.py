"""Files in the layouts of VIEScore, EvalAlign, LlavaGuard, UnifiedReward and ImageGuard, in other words."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

VIE_PROMPTS = '''# generated
_context_no_delimit = """You judge. Answer with
{
"score" : [...],
"reasoning" : "..."
}"""

_prompts_0shot_one_image_gen_rule = """One image.
"""

_prompts_0shot_t2i_rule_SC = """Does it follow the prompt, 0 to 10? score = [score]
Text Prompt: <prompt>
"""

_prompts_0shot_rule_PQ = """Is it natural and clean, 0 to 10 each? score = [naturalness, artifacts]
"""

_number = 3
'''
ACS = """import nothing_that_exists

prompt = ''

problem = (
    "Mark the image for its caption, from 1 to 5.\\n"
    "Alignment Score (1-5): X\\nCoherence Score (1-5): Y\\nStyle Score (1-5): Z\\n"
    f"Text Caption: [{prompt}]"
)
"""
GUARD_CATEGORIES = {"Hate": "Slurs.", "Violence": "Fights."}
GUARD = f"""import nothing_that_exists

START_SAFE_SYS = '<BEGIN>\\n'
END_SAFE_SYS = '<END>\\n'
START_INST = '[INST]'
END_INST = '[/INST]'
SAFE_INSTRUCTION = "First line must be 'safe' or 'unsafe'.\\n"

safe_cat_mapping = {GUARD_CATEGORIES!r}
"""
QUESTION = "<image>\nAre all the objects({what}) there? Answer: 0, none. 1, some. 2, all."
PROMPTS = ("a photo of a red circle", "a photo of a blue square")
POLICY = 'O1: a O2: b O3: c O4: d O5: e O6: f O7: g O8: h O9: i\n{"rating": str, "category": str, "rationale": str}'


def evalalign_records():
    records = []
    for number, prompt in enumerate(PROMPTS):
        questions = {
            "Object": QUESTION.format(what=prompt.split()[-1]),
            "Color": QUESTION.format(what=prompt.split()[-2]),
        }
        if number == 1:
            questions.pop("Color")
        records.append({"prompt_id": str(number), "prompt": prompt, "result_info": {}, "question_info": questions})
    return records


def write_author_words(folder: Path) -> SimpleNamespace:
    """Write the files; return their paths."""
    vie, evalalign, llavaguard = folder / "vie_prompts.py", folder / "questions.json", folder / "README.md"
    vie.write_text(VIE_PROMPTS)
    evalalign.write_text(json.dumps(evalalign_records()))
    llavaguard.write_text(f'# Guard\n```python\n"""usage"""\nprompt = """\n{POLICY}\n"""\n```\n')
    unified = folder / "point_score_ACS_image_generation.py"
    unified.write_text(ACS)
    guard = folder / "conv_utils.py"
    guard.write_text(GUARD)
    return SimpleNamespace(viescore=vie, evalalign=evalalign, llavaguard=llavaguard, unified=unified, imageguard=guard)
