"""What happened after an answer: the record, its fields, and the signed tokens that let a page write one."""
