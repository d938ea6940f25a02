/* What glibc's malloc does to a program that corrupts its heap, and to threads: one JSON line a seed.
 *
 *     gcc -O1 -fno-builtin -pthread -o heap heap.c
 *     ./heap corrupt FIRST LAST [TUNABLES]     random calls, some of them bugs: every result, and how the program ends
 *     ./heap threads FIRST LAST                calls by four threads in turn: places in their arenas' heaps
 *
 * Programs run without address-space randomisation. A corrupt heap can depend on the random key of the thread caches:
 * a seed whose runs differ is left out.
 */
#define _GNU_SOURCE
#include <malloc.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/personality.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

static uint64_t state;

static unsigned rnd(unsigned n)
{
    state ^= state << 13; state ^= state >> 7; state ^= state << 17;
    return (state >> 11) % n;
}

static void seed_with(int seed)
{
    state = seed * 0x9E3779B97F4A7C15ULL + 1;
    for (int i = 0; i < 8; i++)
        rnd(2);
}

/* -- corrupt: the child writes a line before each call and its result after it; the parent reads until it is dead. */

static int out;

static void say(const char *text) { if (write(out, text, strlen(text)) < 0) _exit(3); }

static void begin(const char *name, uint64_t a, uint64_t b)
{
    char line[100];
    snprintf(line, sizeof line, "%s %lx %lx", name, a, b);
    say(line);
}

static void end(uint64_t result)
{
    char line[40];
    snprintf(line, sizeof line, " %lx\n", result);
    say(line);
}

#define MOST 200
static struct { char *memory; size_t size; } live[MOST], dead[MOST];
static int lives, deads;

static const size_t sizes[4][12] = {
    {24, 24, 40, 100, 200, 500, 900, 1100, 2000, 5000, 20000, 24}, {24, 100, 120, 64, 1000, 1040, 3000, 24, 100, 120, 64, 1000},
    {24, 60000, 130000, 140000, 300000, 1000, 100000, 24, 60000, 130000, 1000, 100},
    {1, 1500, 1600, 1700, 3100, 3500, 9000, 10000, 40000, 200000, 1500, 3100}};

static void keep(void *memory, size_t size)
{
    if (memory && lives < MOST) { live[lives].memory = memory; live[lives++].size = size; }
}

static void store(void *where, uint64_t value)
{
    begin("store", (uint64_t)where, value);
    *(uint64_t *)where = value;
    end(0);
}

static void one_bug(void)
{
    static const uint64_t over[] = {0, 1, 0x21, 0x31, 0x71, 0x91, 0x411, 0x1001, 0x20001, 0x22, 0x25, -1UL, 0x7d1, 0x7d0, 0x510};
    int which = rnd(100), d = deads ? rnd(deads) : 0, l = rnd(lives);
    if (which < 15 && deads) {                                  /* double free */
        begin("free", (uint64_t)dead[d].memory, 0); free(dead[d].memory); end(0);
    } else if (which < 60) {                                    /* overflow into the next chunk's size */
        size_t size = live[l].size;
        store(live[l].memory + (size > 24 ? ((size + 23) & ~15UL) - 8 : 24), over[rnd(15)]);
    } else if (deads) {                                         /* write after free */
        uint64_t values[] = {0, (uint64_t)dead[d].memory, (uint64_t)dead[d].memory - 16, (uint64_t)live[l].memory - 16,
                             0x4141414141414141, 0x31, 0x500};
        store(dead[d].memory + 8 * (int)rnd(5) - 8, values[rnd(7)]);
    }
}

static void corrupt_program(int seed)
{
    seed_with(seed);
    int profile = rnd(4), operations = 40 << rnd(3), bugs = rnd(100) < 70;
    for (int i = 0; i < operations; i++) {
        int kind = rnd(100);
        size_t size = sizes[profile][rnd(12)];
        if (kind < 40 || !lives) {
            begin("malloc", size, 0); void *p = malloc(size); end((uint64_t)p); keep(p, size);
        } else if (kind < 72) {
            int l = rnd(lives);
            dead[deads < MOST ? deads++ : (int)rnd(MOST)] = live[l];
            begin("free", (uint64_t)live[l].memory, 0); free(live[l].memory); end(0);
            live[l] = live[--lives];
        } else if (kind < 82) {
            int l = rnd(lives);
            begin("realloc", (uint64_t)live[l].memory, size);
            live[l].memory = realloc(live[l].memory, size); live[l].size = size;
            end((uint64_t)live[l].memory);
        } else if (kind < 85) {
            size_t alignment = 16UL << rnd(10);
            begin("memalign", alignment, size); void *p = memalign(alignment, size); end((uint64_t)p); keep(p, size);
        } else if (kind < 87) {
            begin("malloc_trim", 0, 0); end(malloc_trim(0));
        } else if (kind < 93) {
            if (bugs) one_bug();
        } else {
            begin("calloc", 1, size); void *p = calloc(1, size); end((uint64_t)p); keep(p, size);
        }
    }
}

static int run(int seed, char *log, size_t room, char *message)
{
    int results[2], errors[2], status;
    if (pipe(results) || pipe(errors)) exit(2);
    fflush(stdout);
    pid_t child = fork();
    if (!child) {
        struct rlimit none = {0, 0};
        setrlimit(RLIMIT_CORE, &none);
        dup2(results[1], 3); dup2(errors[1], 2);
        char number[20];
        snprintf(number, sizeof number, "%d", seed);
        execl("/proc/self/exe", "heap", "run", number, (char *)0);
        _exit(127);
    }
    close(results[1]); close(errors[1]);
    size_t length = 0; ssize_t n;
    while ((n = read(results[0], log + length, room - length - 1)) > 0) length += n;
    log[length] = 0;
    length = 0;
    while ((n = read(errors[0], message + length, 400 - length)) > 0) length += n;
    message[length] = 0; message[strcspn(message, "\n")] = 0;
    close(results[0]); close(errors[0]);
    waitpid(child, &status, 0);
    return WIFSIGNALED(status) ? WTERMSIG(status) : 0;
}

static void corrupt(int seed, const char *tunables)
{
    static char first[1 << 18], again[1 << 18];
    char message[500], other[500];
    int signal = run(seed, first, sizeof first, message);
    for (int i = 0; i < 12; i++)
        if (run(seed, again, sizeof again, other) != signal || strcmp(first, again) || strcmp(message, other))
            return;
    char *line = strtok(first, "\n");                           /* the child's first line: heap, main_arena */
    unsigned long heap, arena;
    sscanf(line, "%lx %lx", &heap, &arena);
    printf("{\"seed\":%d,\"tunables\":\"%s\",\"heap_start\":\"0x%lx\",\"main_arena\":\"0x%lx\",\"signal\":%d,\"stderr\":\"%s\",\"ops\":[",
           seed, tunables, heap, arena, signal, message);
    for (int i = 0; (line = strtok(0, "\n")); i++)
        printf("%s\"%s\"", i ? "," : "", line);
    printf("]}\n");
}

/* main_arena's address: the head of the bin of a chunk that was just freed, 96 bytes into it; then the heap is made new. */
static void child(int seed)
{
    char line[60];
    if (seed < 0) {
        uint64_t *p = malloc(5000);
        malloc(24); free(p);
        snprintf(line, sizeof line, "%lx", p[0] - 96);
        say(line);
        _exit(0);
    }
    snprintf(line, sizeof line, "%lx %s\n", (uint64_t)sbrk(0), getenv("MAIN_ARENA"));
    say(line);
    corrupt_program(seed);
    _exit(0);
}

/* -- threads: each call is made by the thread whose turn it is. */

#define THREADS 4
#define SLOTS 60
static void *slots[SLOTS];
static sem_t turn[THREADS], done;
static struct { int kind, slot; size_t size, alignment; } call;

static void *thread(void *number)
{
    for (;;) {
        sem_wait(&turn[(long)number]);
        void **slot = &slots[call.slot];
        switch (call.kind) {
        case 0: *slot = malloc(call.size); break;
        case 1: free(*slot); *slot = 0; break;
        case 2: *slot = realloc(*slot, call.size); break;
        case 3: *slot = calloc(call.size, 1); break;
        case 4: *slot = memalign(call.alignment, call.size); break;
        }
        sem_post(&done);
    }
    return 0;
}

static void threads(int seed, int operations)
{
    static const char *names[] = {"malloc", "free", "realloc", "calloc", "memalign"};
    static char buffer[1 << 20];
    setvbuf(stdout, buffer, _IOFBF, sizeof buffer);
    seed_with(seed);
    int profile = rnd(3);
    sem_init(&done, 0, 0);
    for (long t = 0; t < THREADS; t++) {
        pthread_t id;
        sem_init(&turn[t], 0, 0);
        pthread_create(&id, 0, thread, (void *)t);
    }
    printf("{\"seed\":%d,\"ops\":[", seed);
    for (int i = 0; i < operations; i++) {
        int kind = rnd(100), t = rnd(THREADS);
        size_t most = profile == 0 ? 1500 : profile == 1 ? 30000 : 120000;
        call.slot = rnd(SLOTS);
        call.size = 1 + rnd(rnd(2) ? 1500 : most);
        call.alignment = 32UL << rnd(8);
        call.kind = slots[call.slot] ? (kind < 75 ? 1 : 2) : (kind < 8 ? 4 : kind < 25 ? 3 : 0);
        sem_post(&turn[t]);
        sem_wait(&done);
        printf("%s{\"thread\":%d,\"op\":\"%s\",\"slot\":%d,\"size\":%zu", i ? "," : "", t, names[call.kind], call.slot, call.size);
        if (call.kind == 4)
            printf(",\"align\":%zu", call.alignment);
        uint64_t memory = (uint64_t)slots[call.slot];
        if (memory) {                                           /* flags of the chunk; offset in its heap, and that heap's header */
            uint64_t *heap = (uint64_t *)(memory & -(64UL << 20)), flags = ((uint64_t *)memory)[-1] & 6;
            printf(",\"usable\":%zu,\"flags\":%lu", malloc_usable_size((void *)memory), flags);
            if (flags == 4)
                printf(",\"off\":%lu,\"heap_size\":%lu,\"heap_opened\":%lu", memory - (uint64_t)heap, heap[2], heap[3]);
        }
        printf("}");
    }
    printf("]}\n");
}

int main(int argc, char **argv)
{
    if (!(personality(0xffffffff) & ADDR_NO_RANDOMIZE)) {
        personality(ADDR_NO_RANDOMIZE);
        execv("/proc/self/exe", argv);
    }
    if (argc == 3 && !strcmp(argv[1], "run")) { out = 3; child(atoi(argv[2])); }
    if (argc < 4) { fprintf(stderr, "usage: heap corrupt|threads FIRST LAST [TUNABLES]\n"); return 2; }
    if (argc > 4) setenv("GLIBC_TUNABLES", argv[4], 1);
    if (!strcmp(argv[1], "corrupt")) {
        static char arena[1000], message[500];
        run(-1, arena, sizeof arena, message);
        setenv("MAIN_ARENA", arena, 1);
    }
    for (int seed = atoi(argv[2]); seed <= atoi(argv[3]); seed++) {
        if (!strcmp(argv[1], "corrupt")) { corrupt(seed, argc > 4 ? argv[4] : ""); continue; }
        fflush(stdout);
        if (!fork()) { threads(seed, 200); fflush(stdout); _exit(0); }
        wait(0);
    }
    return 0;
}
