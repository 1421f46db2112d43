"""The script that one would write with transformers: batches of 32 sorted by length, beam 4.

``python benchmarks/translate_with_transformers.py MODEL INPUT OUTPUT``
"""

import sys
from pathlib import Path

import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

folder, source, output = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float32).eval()
lines = Path(source).read_text(encoding="utf-8").splitlines()
order = sorted(range(len(lines)), key=lambda row: -len(lines[row]))
texts = [""] * len(lines)
with torch.inference_mode():
    for start in range(0, len(lines), 32):
        rows = order[start : start + 32]
        batch = tokenizer([lines[row] for row in rows], return_tensors="pt", padding=True, truncation=True)
        found = model.generate(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], num_beams=4, max_length=102
        )
        for row, text in zip(rows, tokenizer.batch_decode(found, skip_special_tokens=True), strict=True):
            texts[row] = text
Path(output).write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
