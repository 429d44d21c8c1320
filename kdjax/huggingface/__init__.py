"""Hugging Face folders of BERT, DistilBERT and RoBERTa classifiers, read and written without transformers or torch.

    teacher = load("bert-base-uncased-finetuned")                    # config.json, model.safetensors, vocab.txt
    student = load("distilbert-base-uncased", num_classes=77, new_head=True)
    student = from_layers(teacher, [0, 2, 4, 7, 9, 11])               # as DistilBERT began
    save("mine", student, tokenizer=tokenizer)

A loaded classifier teaches by `teachers.frozen(teacher.model, teacher.variables)`; a loaded student begins its training
with `trainer.init()._replace(params=student.variables["params"])` of a task with `model=student.model`.

Reading is strict: every tensor of the network must be there in its shape, and nothing else but a short list of what
pretraining leaves behind. What is left to chance or passed over is named in the result and in the log.
"""

from kdjax.huggingface.folder import Pretrained, check_label_names, load, save
from kdjax.huggingface.layers import from_layers
from kdjax.huggingface.tokenizer import Tokenizer
from kdjax.huggingface.vocabulary import Vocabulary

__all__ = ["Pretrained", "Tokenizer", "Vocabulary", "check_label_names", "from_layers", "load", "save"]
