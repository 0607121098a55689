"""The paper's curriculum in miniature, from raw films to a page that says what each stage brings (docs/curriculum.md)."""
