"""The paper's curriculum in miniature, from raw films to a page of what each stage brings (docs/curriculum.md)."""
