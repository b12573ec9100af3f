"""What happened after an answer: the record, its fields, and the signed tokens with which a page may write one."""
