"""What runs in an app: the tracer, and the functions of `import nightschool`."""
