"""The command ressl-evaluate, from a checkout of the repository."""

from ressl_keras.commands.evaluate import main

if __name__ == "__main__":
    main()
