"""GGUF files for llama.cpp and Ollama, written without llama.cpp."""
