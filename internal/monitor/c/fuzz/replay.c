/* Runs inputs from files: the fuzz test's corpus, where there is no libFuzzer. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int main(int argc, char **argv)
{
	for (int i = 1; i < argc; i++) {
		static uint8_t buf[1 << 20];
		FILE *f = fopen(argv[i], "rb");
		size_t n = f != NULL ? fread(buf, 1, sizeof(buf), f) : 0;
		uint8_t *input = malloc(n); /* of this size, for the sanitizer */

		if (f == NULL || ferror(f) || input == NULL) {
			perror(argv[i]);
			return 1;
		}
		fclose(f);
		for (size_t j = 0; j < n; j++)
			input[j] = buf[j];
		fprintf(stderr, "%s\n", argv[i]); /* the last one named is the one that failed */
		LLVMFuzzerTestOneInput(input, n);
		free(input);
	}
	return 0;
}
